"""The teacher side, and the contract (`pipeline.targets`) that it shares with students."""
