"""What programs read and send that were written for vLLM's servers: routers, controllers, entry points."""
