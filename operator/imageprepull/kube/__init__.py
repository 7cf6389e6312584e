"""A thin Kubernetes API client and informer on aiohttp, for what the agent and the operator watch."""
