"""The launch of `replica-detection serve`: the application, TLS, health, metrics, reloading."""
