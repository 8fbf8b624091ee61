"""Tables and figures from the files of finished runs; nothing in this layer loads a model."""
