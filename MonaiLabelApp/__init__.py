"""The MONAI Label server app of Replica Detection, importable as `replica_detection_server`.

The folder is both: a MONAI Label app (`--app MonaiLabelApp`) and this package. The app contains no detection method:
those are in the core.
"""
