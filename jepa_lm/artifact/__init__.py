"""The exported file: container, compression, size account."""
