"""The linear map of a layer, and its symbol."""
