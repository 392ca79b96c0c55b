"""Is online training worth it? A replay of history that somebody has, a file or a stream's log, without a deployment.

Everything that is scored was predicted with what was known at its event: labels teach when they came, trees are trained on
labels that had come, and nobody's settings were chosen by the part that is scored.
"""
