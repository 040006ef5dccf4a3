"""What devices report of their data: merged, compared, judged, and turned into incidents."""
