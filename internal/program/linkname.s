// It lets functions be declared that another package has the body of.
