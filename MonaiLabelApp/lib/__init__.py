"""What MONAI Label calls tasks, one folder for each kind."""
