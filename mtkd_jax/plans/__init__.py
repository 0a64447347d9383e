"""What is trained after what: stages of teachers and students."""
