"""The part of the JobSet API (jobset.x-k8s.io/v1alpha2, with the batch/v1 and core/v1 types inside it) that launch.gke uses, as a schema.

Written down from the published API reference: names, types, allowed values and required fields; a field that is not here is refused.
"""

import re

NAME = {"type": str, "pattern": r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"}
COUNT = {"type": int, "minimum": 0}


def record(required, **properties):
    """An object with these fields and no others."""
    return {"type": dict, "required": required.split(), "properties": properties}


def array(items):
    """A list of these."""
    return {"type": list, "items": items}


TABLE = {"type": dict, "values": {"type": str}}
ENV = record(
    "name",
    name={"type": str, "pattern": r"[A-Za-z_][A-Za-z0-9_]*"},
    value={"type": str},
    valueFrom=record("fieldRef", fieldRef=record("fieldPath", fieldPath={"type": str})),
)
CONTAINER = record(
    "name image",
    name=NAME,
    image={"type": str},
    command=array({"type": str}),
    env=array(ENV),
    envFrom=array(record("secretRef", secretRef=record("name", name=NAME))),
    resources=record("limits", limits={"type": dict, "values": {"type": str, "pattern": r"[1-9]\d*"}}),
    ports=array(record("containerPort", containerPort=COUNT)),
    volumeMounts=array(record("name mountPath", name=NAME, mountPath={"type": str}, readOnly={"type": bool})),
)
POD = record(
    "containers restartPolicy",
    restartPolicy={"type": str, "enum": ["Never", "OnFailure"]},
    terminationGracePeriodSeconds=COUNT,
    nodeSelector=TABLE,
    serviceAccountName=NAME,
    containers=array(CONTAINER),
    volumes=array(record("name configMap", name=NAME, configMap=record("name", name=NAME))),
)
RULE = record(
    "action",
    action={"type": str, "enum": ["FailJob", "FailIndex", "Ignore", "Count"]},
    onExitCodes=record(
        "operator values", containerName=NAME, operator={"type": str, "enum": ["In", "NotIn"]}, values=array({"type": int, "minimum": 1})
    ),
    onPodConditions=array(record("type status", type={"type": str}, status={"type": str, "enum": ["True", "False", "Unknown"]})),
)
JOB = record(
    "template",
    completionMode={"type": str, "enum": ["Indexed", "NonIndexed"]},
    parallelism=COUNT,
    completions=COUNT,
    backoffLimit=COUNT,
    podFailurePolicy=record("rules", rules=array(RULE)),
    template=record("spec", spec=POD),
)
ACTIONS = ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
REASONS = ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"]
FAILURE = record(
    "",
    maxRestarts=COUNT,
    restartStrategy={"type": str, "enum": ["Recreate", "BlockingRecreate"]},
    rules=array(
        record(
            "name action",
            name={"type": str, "pattern": r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"},
            action={"type": str, "enum": ACTIONS},
            onJobFailureReasons=array({"type": str, "enum": REASONS}),
            targetReplicatedJobs=array(NAME),
        )
    ),
)
METADATA = record("name", name=NAME, namespace=NAME, labels=TABLE, annotations=TABLE)
JOBSET = record(
    "apiVersion kind metadata spec",
    apiVersion={"type": str, "enum": ["jobset.x-k8s.io/v1alpha2"]},
    kind={"type": str, "enum": ["JobSet"]},
    metadata=METADATA,
    spec=record(
        "replicatedJobs",
        failurePolicy=FAILURE,
        network=record("", enableDNSHostnames={"type": bool}, publishNotReadyAddresses={"type": bool}, subdomain=NAME),
        replicatedJobs=array(record("name template", name=NAME, replicas=COUNT, template=record("spec", spec=JOB))),
    ),
)


def errors(value, schema, place="jobset"):
    """What is wrong with a value, as sentences."""
    if type(value) is not schema["type"]:
        return [f"{place} is a {type(value).__name__}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{place} is {value!r}")
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        found.append(f"{place} is {value!r}")
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{place} is {value!r}")
    if "properties" in schema:
        found += [f"{place} has no {name}" for name in schema["required"] if name not in value]
        found += [f"{place} has an unknown {name}" for name in value if name not in schema["properties"]]
        found += [
            e for name, one in value.items() for e in errors(one, schema["properties"].get(name, {"type": type(one)}), f"{place}.{name}")
        ]
    if "values" in schema:
        found += [e for name, one in value.items() for e in errors(one, schema["values"], f"{place}.{name}")]
    if "items" in schema:
        found += [e for i, one in enumerate(value) for e in errors(one, schema["items"], f"{place}[{i}]")]
    return found
