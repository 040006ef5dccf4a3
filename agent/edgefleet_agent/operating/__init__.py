"""What a person needs to run an agent: logs, health, status, and a doctor."""
