"""The settings of the launch, and the cohorts that they name."""
