"""Tables and figures from the files of finished runs; nothing on this floor loads a model."""
