"""The studies and training cases: files, series, labels, and MONAI Label's datastore over them."""
