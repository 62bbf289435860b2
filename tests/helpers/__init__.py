"""What tests share: tiny models, data and tasks, processes that can be killed, other people's code to compare with."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
