"""WHO proposes the next plan, and on which machines it is tried."""
