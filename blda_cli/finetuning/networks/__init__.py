"""The networks in training: the student, the teacher that follows it, and their batch norms."""
