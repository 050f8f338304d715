"""The exported artifact: container, compression, size accounting, scoring."""
