"""Chat templates, one jinja file per family; `luthier.data.template_files` reads them."""
