"""One call: a study chosen for a teacher, questions and a time budget."""
