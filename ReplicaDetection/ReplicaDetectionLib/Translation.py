"""`_`: a text in the application's language; the text itself where there is no application."""

try:
    from slicer.i18n import tr as _
except ImportError:

    def _(text: str) -> str:
        return text


__all__ = ["_"]
