"""What a program will cost on devices that are not there, from the compiler: it is handed programs, and knows no stage."""
