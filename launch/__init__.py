"""Starting jobs, here and elsewhere; speaks only the command line of jaxllm."""
