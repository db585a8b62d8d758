"""``townlet watch``: one episode in the terminal or as a GIF, and what goes on inside the agent."""
