"""The access record, the request log, and the redaction of both."""
