"""Logs, metrics and health endpoints, shared by agent and operator."""
