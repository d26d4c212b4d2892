"""Evaluation: answers, measures, comparison, chat, and the report that says what was gained."""
