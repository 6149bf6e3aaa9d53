"""Finding and fetching base models: for the server that loads them and the trainer that adapts them."""
