"""Connections and requests: limits, trusted hosts, names, and the answers to errors."""
