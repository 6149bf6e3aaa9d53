"""Files of requests, answered at low priority beside live traffic."""
