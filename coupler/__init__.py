"""How two sides talk and who decides: protocol, switch, guard, links, ranks, registry and the testing kit."""
