"""A message, its tools and its calls out of what people write: roles by all their names, arguments as text or as a table."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.data.dialogues import ASSISTANT, Message

ROLES = {  # what speakers are called elsewhere
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys((ASSISTANT, "gpt", "bot", "model", "chatgpt", "function_call"), ASSISTANT),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "ipython"), "tool"),
}


class Problem(ValueError):
    """What is wrong with a record; whoever knows where it stands says so."""


def text_of(said: Any, what: str) -> str:
    """A text; None is an empty one, a list of text parts their texts."""
    if isinstance(said, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in said):
        said = "".join(str(part.get("text", "")) for part in said)
    if said is not None and not isinstance(said, str):
        kinds = {str(part.get("type")) for part in said if isinstance(part, Mapping)} if isinstance(said, list) else set()
        raise Problem(f"has a {what} that is no text but {', '.join(sorted(kinds)) or type(said).__name__}")
    return said or ""


def check_encodable(said: Any) -> None:
    """Refuses half a surrogate pair, which JSON can spell ("\\ud83d") and UTF-8 cannot, in any text or name of what is said.

    Raises:
      Problem: quotes it.
    """
    if isinstance(said, str):
        try:
            said.encode()
        except UnicodeEncodeError as error:
            raise Problem(f"has a text with {said[error.start]!a} in it, half a surrogate pair, which is no character") from None
    elif isinstance(said, Mapping):
        check_encodable([*said, *said.values()])
    elif isinstance(said, list | tuple):
        for one in said:
            check_encodable(one)


def tools_of(said: Any) -> tuple[Mapping[str, Any], ...]:
    """The tools of a record: a list of schemas, or the JSON of one."""
    found = _json(said, "tools") if isinstance(said, str) and said.strip() else said
    if not found:
        return ()
    if not isinstance(found, list) or not all(isinstance(tool, Mapping) for tool in found):
        raise Problem("has tools that are no list of JSON schemas")
    return tuple(found)


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Problem(f"has {what} that are broken JSON: {error}") from None


def calls_of(said: Any) -> tuple[Mapping[str, Any], ...]:
    """Tool calls, as {"name", "arguments"} each; arguments as OpenAI writes them (JSON in a text) are opened."""
    found = _json(said, "tool calls") if isinstance(said, str) else said
    calls = []
    for call in found if isinstance(found, list) else [found]:
        own = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(own, Mapping) or not isinstance(own.get("name"), str):
            raise Problem("has a tool call without a name")
        arguments = own.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _json(arguments, "arguments of a tool call") if arguments.strip() else {}
        calls.append({"name": own["name"], "arguments": arguments} | ({"id": call["id"]} if call.get("id") else {}))
    return tuple(calls)


def message_of(said: Any, role_key: str, text_key: str, participants: Sequence[str]) -> Message:
    """One entry of a list of messages."""
    if not isinstance(said, Mapping) or role_key not in said:
        raise Problem(f"has a message without {role_key!r}")
    spoken = str(said[role_key])
    role = spoken if spoken in participants else ROLES.get(spoken)
    if role is None:
        known = ", ".join(("system", "user", ASSISTANT, "tool", *participants))
        raise Problem(f"has a message of an unknown role {spoken!r} (known: {known}); name it among the participants if it is one")
    content, calls = text_of(said.get(text_key), text_key), said.get("tool_calls") or said.get("function_call") or ()
    if spoken == "function_call":
        content, calls = "", content
    weight = said.get("weight", said.get("train"))
    if weight is not None and not isinstance(weight, bool | int | float):
        raise Problem(f"has a weight {weight!r} that is no number")
    return Message(
        role,
        content,
        said.get("name") or None,
        calls_of(calls) if calls else (),
        None if weight is None else float(weight),
        reasoning=text_of(said.get("reasoning_content") or said.get("reasoning") or said.get("thinking"), "reasoning"),
    )


def messages_of(said: Any, role_key: str, text_key: str, participants: Sequence[str]) -> list[Message]:
    """A list of messages.

    Args:
      said: the list.
      role_key, text_key: what who speaks and what is said are called.
      participants: roles beside those of `ROLES`.

    Raises:
      Problem: it is none.
    """
    if not isinstance(said, list):
        raise Problem("has messages that are no list")
    return [message_of(one, role_key, text_key, participants) for one in said]
