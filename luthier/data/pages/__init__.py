"""HTML pages, each one file that needs nothing else: no script, style, font or picture is fetched from anywhere."""
