"""What is known about a network as a graph: channel groups, importance, low rank, cost. Pure torch."""
