"""Spans of requests, for OpenTelemetry. Nothing of it runs unless a server is told where to send them."""
