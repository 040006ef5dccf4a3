"""From a drift incident to a challenger, and from a challenger to a decision."""
