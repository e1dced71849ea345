"""The search for students: candidates, costs, scores, Optuna."""
