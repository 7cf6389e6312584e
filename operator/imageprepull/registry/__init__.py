"""The registry side of a pull: hosts.toml, credentials, authorisation, and the aiohttp client."""
