"""One run: a student, a teacher's cache or a server, in a process of its own."""
