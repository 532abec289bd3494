"""The models: a decoder, the f-gram model A_f, SCONE that joins the two, the hashed rival, and what each costs."""
