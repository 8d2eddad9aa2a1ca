"""The processes that compute: workers, jobs, and the queue before them."""
