"""A study after "Task-Level Insights from Eigenvalues across Sequence Models" (Rickenbach et al. 2025)."""
