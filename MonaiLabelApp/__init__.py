"""The MONAI Label server app of Replica Detection, importable as `replica_detection_server`.

The folder is both: a MONAI Label app (`--app MonaiLabelApp`) and this package. The app holds no method of its own.
"""
