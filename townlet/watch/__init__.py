"""``townlet watch``: one episode in the terminal or as a GIF, with what goes on inside the agent."""
