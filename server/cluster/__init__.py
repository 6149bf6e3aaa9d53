"""Several servers as one: which of them a request should go to, and how they run on Ray Serve."""
