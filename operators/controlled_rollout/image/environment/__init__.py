"""What is installed for a version: the description in a file, and the hash under which a built environment is found."""
