"""Networks x seeds x methods, measured alike: bytes on disk, accuracy of what the file restores, time and memory."""
