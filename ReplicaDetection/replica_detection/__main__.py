"""`python -m replica_detection` is the same as `replica-detection`."""

from replica_detection.cli import main

if __name__ == "__main__":
    main()
