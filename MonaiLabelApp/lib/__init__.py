"""The tasks of MONAI Label, one folder for each kind."""
