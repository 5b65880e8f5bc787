"""The operating system: files, directories, memory, clocks."""
