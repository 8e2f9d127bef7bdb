"""The program inside every version: the user's init() and run() behind a server."""
